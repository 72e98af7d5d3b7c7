"""What no rule knows: a model is asked, and what it answers is one of five typed outcomes or nothing.

prompts     versioned files, and their hashes
context     what a model is told: sources, each with its own deadline; what is absent is said to be
reasoner    asks: retries, rounds of reads, and a journal that lets a restart go on without paying twice
journal     what was asked and answered, in PostgreSQL
questions   answers of people to the questions of decisions
"""
