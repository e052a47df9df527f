"""What every other package of db stands on: ids, encryption, URLs, binary arrays. Knows no table."""
