#!/usr/bin/env python3
"""Checks a report's page: well-formed XML, nothing from outside, no script, ids that are unique and found.

    page_check.py PAGE.html      prints the number of figures and tables, then the page's text
"""
import re
import sys
import xml.etree.ElementTree as ElementTree

text = open(sys.argv[1], encoding="utf-8").read()
root = ElementTree.fromstring(text)
failures, ids, references = [], [], []
figures = tables = 0
for element in root.iter():
    tag = element.tag.rsplit("}", 1)[-1]
    figures += tag == "figure"
    tables += tag == "table"
    if tag in ("script", "link", "img", "iframe", "object", "embed", "base", "form"):
        failures.append(f"element {tag}")
    for name, value in element.attrib.items():
        name = name.rsplit("}", 1)[-1]
        if name == "id":
            ids.append(value)
        if name in ("href", "src", "action", "data", "srcset"):
            references.append(value)
        if name.startswith("on"):
            failures.append(f"attribute {name}")
        references += re.findall(r"url\(([^)]*)\)", value)
references += re.findall(r"url\(([^)]*)\)|@import", "".join(e.text or "" for e in root.iter() if e.tag.endswith("style")))
if len(ids) != len(set(ids)):
    failures.append("an id occurs twice: " + next(i for i in ids if ids.count(i) > 1))
for reference in references:
    if not reference.startswith("#") or reference[1:] not in ids:
        failures.append(f"reference {reference!r} leads out of the page or nowhere")
if failures:
    sys.exit("; ".join(failures[:5]))
print(figures, tables)
print(re.sub(r"\s+", " ", " ".join(root.itertext())))
