"""Data sets of facts to edit, built from a dump of Wikidata."""
