"""What a draft states: task, label, inputs, series and split, with reasons."""
