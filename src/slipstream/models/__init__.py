"""Model families: config, plan and forward."""
