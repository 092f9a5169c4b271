"""What a reader is given: answers that say how far, how old and from where (`answer`), who serves what (`directory`), which `columns`."""
