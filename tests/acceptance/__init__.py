"""A package, as each folder with a live platform of its own: only so does pytest end a platform with its folder."""
