"""The command `grade`: which exercises a class has solved, one row a student.

`attempts` reads notebooks and runs nothing; `contained` runs code that nobody has read
in a process that can do little harm; `marks` does both for a folder and writes the
table. setup/teaching.md says what this protects, and what it does not.
"""
