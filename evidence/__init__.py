"""Which rows of a model may share a run: what the names propose, and what running it shows.

Needs numpy and a function that runs the model; knows no runtime. The worker asks when it loads a
model, the export before it publishes one, `batchyard check` for people. docs/architecture.md, "Which
rows may share a run", has the rules.
"""
