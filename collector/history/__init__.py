"""What happens to rows as they age."""
