"""Where rows come from: files, folders, the hub, mixtures of them; at hand or streamed. No row is understood here."""
