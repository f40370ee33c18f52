# awk -v overrides="section.key=value key=value ..." -f with_overrides.awk FILE.yaml: the run file with these keys set.
# For files of block style, sections at the margin and keys two spaces in; a key or section that is not there is added.
BEGIN {
  count = split(overrides, list, " ")
  for (i = 1; i <= count; i++) {
    path = substr(list[i], 1, index(list[i], "=") - 1)
    value[path] = substr(list[i], index(list[i], "=") + 1)
    order[i] = path
  }
}
function rest(section,    i, path, dot) {  # keys of the section that the file does not have
  for (i = 1; i <= count; i++) {
    path = order[i]
    dot = index(path, ".")
    if ((path in value) && dot > 0 && substr(path, 1, dot - 1) == section) {
      printf "  %s: %s\n", substr(path, dot + 1), value[path]
      delete value[path]
    }
  }
}
/^[a-z_]+:/ {
  rest(section)
  key = substr($0, 1, index($0, ":") - 1)
  section = key
  if (key in value) {
    print key ": " value[key]
    delete value[key]
    next
  }
}
/^  [a-z_0-9]+:/ {
  key = substr($1, 1, index($1, ":") - 1)
  path = section "." key
  if (path in value) {
    print "  " key ": " value[path]
    delete value[path]
    next
  }
}
{ print }
END {
  rest(section)
  for (i = 1; i <= count; i++) {
    path = order[i]
    if (!(path in value)) continue
    dot = index(path, ".")
    if (dot > 0) {
      print substr(path, 1, dot - 1) ":"
      rest(substr(path, 1, dot - 1))
    } else {
      print path ": " value[path]
    }
  }
}
