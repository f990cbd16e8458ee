"""What a flow run waits for and obeys: approval, GPU slots, liveness."""
