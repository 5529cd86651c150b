"""The policy language: parser, snapshot, evaluation and loading."""
