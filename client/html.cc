#include "client/html.h"

#include <cstdint>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_replace.h"

namespace lockstep {
namespace {

// A table of at most so many rows stays on one page.
constexpr size_t kMostRowsKept = 12;

// Bytes of the UTF-8 character at `i` that XML allows; 0: there is none.
size_t CharacterBytes(const std::string& text, size_t i) {
  const auto byte = [&](size_t k) { return static_cast<uint8_t>(k < text.size() ? text[k] : 0); };
  const uint8_t first = byte(i);
  if (first < 0x80) return first >= 0x20 || first == '\t' || first == '\n' ? 1 : 0;
  const size_t length = first < 0xC2 ? 0 : first < 0xE0 ? 2 : first < 0xF0 ? 3 : first < 0xF5 ? 4 : 0;
  uint32_t code = length == 0 ? 0 : first & (0xFF >> (length + 1));
  for (size_t k = 1; k < length; ++k) {
    if ((byte(i + k) & 0xC0) != 0x80) return 0;
    code = code << 6 | (byte(i + k) & 0x3F);
  }
  // Overlong forms, surrogates, the two that are no characters, and what lies beyond Unicode.
  if (length == 3 && (code < 0x800 || (code >= 0xD800 && code < 0xE000) || code >= 0xFFFE)) return 0;
  if (length == 4 && (code < 0x10000 || code > 0x10FFFF)) return 0;
  return length;
}

}  // namespace

std::string HtmlText(const std::string& text) {
  std::string out;
  for (size_t i = 0; i < text.size();) {
    const size_t bytes = CharacterBytes(text, i);
    if (bytes == 0) {
      out += '?';
      ++i;
      continue;
    }
    switch (text[i]) {
      case '&':
        out += "&amp;";
        break;
      case '<':
        out += "&lt;";
        break;
      case '>':
        out += "&gt;";
        break;
      case '"':
        out += "&quot;";
        break;
      case '\'':
        out += "&#39;";
        break;
      default:
        out.append(text, i, bytes);
    }
    i += bytes;
  }
  return out;
}

std::string InlineSvg(const std::string& svg, const std::string& id_prefix, const std::string& title) {
  const size_t begin = svg.find("<svg");
  if (begin == std::string::npos) return "";
  std::string element = absl::StrReplaceAll(svg.substr(begin), {{" id='", " id='" + id_prefix},
                                                                {" id=\"", " id=\"" + id_prefix},
                                                                {"xlink:href='#", "xlink:href='#" + id_prefix},
                                                                {"url(#", "url(#" + id_prefix}});
  const size_t title_begin = element.find("<title>"), title_end = element.find("</title>");
  if (title_begin != std::string::npos && title_end != std::string::npos && title_begin < title_end) {
    element.replace(title_begin + 7, title_end - title_begin - 7, HtmlText(title));
  }
  return element;
}

std::string HtmlTableText(const HtmlTable& table) {
  std::string html =
      absl::StrCat("<table", table.rows.size() <= kMostRowsKept ? " class=\"keep\"" : "", ">\n<thead><tr>");
  const auto open = [&](const char* tag, size_t column) {
    constexpr const char* kClasses[] = {">", " class=\"n\">", " class=\"w\">"};
    return absl::StrCat("<", tag, kClasses[table.columns[column].kind]);
  };
  for (size_t i = 0; i < table.columns.size(); ++i) {
    absl::StrAppend(&html, open("th", i), HtmlText(table.columns[i].name), "</th>");
  }
  absl::StrAppend(&html, "</tr></thead>\n<tbody>\n");
  for (const auto& row : table.rows) {
    absl::StrAppend(&html, "<tr>");
    for (size_t i = 0; i < table.columns.size(); ++i) {
      absl::StrAppend(&html, open("td", i), i < row.size() ? HtmlText(row[i]) : "", "</td>");
    }
    absl::StrAppend(&html, "</tr>\n");
  }
  return html + "</tbody>\n</table>\n";
}

}  // namespace lockstep
