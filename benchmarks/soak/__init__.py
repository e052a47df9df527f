"""A platform under everyday use for an hour: does anything fail, or grow without end?"""
