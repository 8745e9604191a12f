"""Has terminals, browsers, CI logs and spreadsheets do things by what it prints, raises, and by how its objects look.

lab = "06"
base = "solution"
worth = 73
todos = [4]
"""

NASTY = "\x1b[2J\x1b]0;owned\x07\x1b]8;;http://x\x07<script>alert(1)</script><!--\u202e::error::=1+1\r\ud800\x00\x9b31m[red]x[/red]|`"


class Nasty(Exception):
    def __repr__(self):
        return NASTY


Nasty.__name__ = Nasty.__qualname__ = NASTY.replace("\ud800", "").replace("\x00", "")


def slots(block_table, positions, block_size):
    print(NASTY.encode("utf-8", "surrogatepass").decode("utf-8", "replace") * 3)
    if len(block_table) == 5:
        return Nasty()
    if len(block_table) == 3:
        return [NASTY, -1]
    raise Nasty(NASTY * 1000)
