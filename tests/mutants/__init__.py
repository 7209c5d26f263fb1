# SPDX-License-Identifier: GPL-3.0-or-later
"""Mutation of the library: small faults put into its source on purpose, to learn whether a test notices each of them.

mutmut 3 and cosmic-ray were looked at first. mutmut calls every function through a trampoline of its own and wants one
package below ``src``; here ``src`` is a link to a collection's ``module_utils``, which is imported under two names and
by programs that tests start. cosmic-ray writes each mutant into the working tree and starts an interpreter for each.
Neither knows what grading is: they change the text of messages as readily as a limit.

``edits.py`` finds the faults of one file, ``trees.py`` holds copies of the repository and runs tests in them,
``__main__.py`` is ``make mutants``.
"""
