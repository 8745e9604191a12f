"""Defines its wrong functions again, by exec, by assignment and under full-width names, so that they cover our code for them.

lab = "06"
base = "solution"
worth = 73
todos = [1]
"""


class FreeList:
    def take(self, count):
        return []

    def give_back(self, blocks):
        raise ValueError("never")


def again(self, count):
    return list(range(count))


exec("def take(self, count):\n    return []\nFreeList.take = take")
setattr(FreeList, "give_back", lambda self, blocks: None)


class ＦreeList(FreeList):
    def take(self, count):
        return []
