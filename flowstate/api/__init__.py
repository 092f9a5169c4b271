"""What a user holds: streams that build a plan, `start` that runs it, and jobs that answer."""
