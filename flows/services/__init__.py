"""`bloomery up`: supervisor, deployments and automations."""
