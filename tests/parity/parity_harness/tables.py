"""placeholder"""
def tables(rec): pass
