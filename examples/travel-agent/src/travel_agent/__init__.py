"""An agent that plans trips with two sandboxed tools: fixed code asks for the weather, and a model's code draws it."""
