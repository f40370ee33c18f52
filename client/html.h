// Text and pictures in an HTML page that is also well-formed XML.
#ifndef LOCKSTEP_CLIENT_HTML_H_
#define LOCKSTEP_CLIENT_HTML_H_

#include <string>
#include <vector>

namespace lockstep {

// Anything as text or attribute value: markup is escaped; controls that XML does not allow and bytes that are not UTF-8
// become '?'.
std::string HtmlText(const std::string& text);

// An SVG document of gnuplot's as an element of a page: without its prolog, its ids prefixed (pictures of one page must
// not share them), its title as given.
std::string InlineSvg(const std::string& svg, const std::string& id_prefix, const std::string& title);

struct HtmlTable {
  struct Column {
    enum Kind { kText, kNumber, kWhole };  // kNumber: to the right; kWhole: not broken over lines
    std::string name;
    Kind kind = kText;
  };
  std::vector<Column> columns;
  std::vector<std::vector<std::string>> rows;  // text, escaped here
};
std::string HtmlTableText(const HtmlTable& table);

}  // namespace lockstep

#endif  // LOCKSTEP_CLIENT_HTML_H_
