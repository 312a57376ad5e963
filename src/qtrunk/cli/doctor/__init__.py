"""`qtrunk doctor`: small checks that find what is wrong, each with the fix; `command` has their table."""
