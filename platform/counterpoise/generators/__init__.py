"""What turns a request into pixels."""
