"""Floor 0: values. Nothing here touches the outside world."""
