// SPDX-License-Identifier: Apache-2.0
#include "device/json.h"

#include <algorithm>
#include <cstdint>
#include <cstring>

#include "device/values.h"
#include "ort/ort.h"

namespace rimc {
namespace {

constexpr int kMaxDepth = 16;

bool IsOneOf(char c, const char* any) { return c != '\0' && std::strchr(any, c) != nullptr; }

class Parser {
 public:
  Parser(const std::string& where, const std::string& text) : where_(where), text_(text) {}

  Json Whole() {
    Json value = Value(0);
    SkipSpace();
    if (at_ != text_.size()) Fail();
    return value;
  }

 private:
  [[noreturn]] void Fail() const {
    const std::string found =
        at_ < text_.size() ? "'" + text_.substr(at_, 1) + "'" : "the end of the text";
    Refuse(where_, " is not JSON: unexpected ", found, " at character ", at_);
  }

  void SkipSpace() {
    while (Is(" \t\r\n")) ++at_;
  }

  // The next character that is no space; 0 at the end.
  char Next() {
    SkipSpace();
    return at_ < text_.size() ? text_[at_] : '\0';
  }

  bool Take(char c) {
    if (Next() != c) return false;
    ++at_;
    return true;
  }

  void Expect(char c) {
    if (!Take(c)) Fail();
  }

  Json Word(const char* word, Json::Kind kind) {
    for (const char* c = word; *c != '\0'; ++c, ++at_) {
      if (at_ >= text_.size() || text_[at_] != *c) Fail();
    }
    Json value;
    value.kind = kind;
    return value;
  }

  Json Value(int depth) {
    if (depth > kMaxDepth) Refuse(where_, " is nested too deep");
    switch (Next()) {
      case '{':
        return Object(depth);
      case '[':
        return List(depth);
      case '"': {
        Json value;
        value.kind = Json::Kind::kText;
        value.text = Text();
        return value;
      }
      case 't':
        return Word("true", Json::Kind::kTrue);
      case 'f':
        return Word("false", Json::Kind::kFalse);
      case 'n':
        return Word("null", Json::Kind::kNull);
      default:
        return Number();
    }
  }

  Json Object(int depth) {
    Json value;
    value.kind = Json::Kind::kObject;
    Expect('{');
    if (Take('}')) return value;
    do {
      if (Next() != '"') Fail();
      std::string name = Text();
      if (value.Find(name) != nullptr) Refuse(where_, " has '", name, "' twice");
      Expect(':');
      value.fields.emplace_back(std::move(name), Value(depth + 1));
    } while (Take(','));
    Expect('}');
    return value;
  }

  Json List(int depth) {
    Json value;
    value.kind = Json::Kind::kList;
    Expect('[');
    if (Take(']')) return value;
    do {
      value.items.push_back(Value(depth + 1));
    } while (Take(','));
    Expect(']');
    return value;
  }

  bool Digits() {
    const std::size_t first = at_;
    while (at_ < text_.size() && text_[at_] >= '0' && text_[at_] <= '9') ++at_;
    return at_ > first;
  }

  bool Is(const char* any) const { return at_ < text_.size() && IsOneOf(text_[at_], any); }

  Json Number() {
    Json value;
    value.kind = Json::Kind::kNumber;
    const std::size_t first = at_;
    if (Is("-")) ++at_;
    const bool zero = Is("0");
    if (!Digits() || (zero && at_ - first > (text_[first] == '-' ? 2u : 1u))) Fail();
    if (Is(".")) {
      ++at_;
      if (!Digits()) Fail();
    }
    if (Is("eE")) {
      ++at_;
      if (Is("+-")) ++at_;
      if (!Digits()) Fail();
    }
    value.text = text_.substr(first, at_ - first);
    return value;
  }

  std::uint32_t Hex4() {
    std::uint32_t code = 0;
    for (int i = 0; i < 4; ++i, ++at_) {
      constexpr const char* kHex = "0123456789abcdef";
      if (!Is("0123456789abcdefABCDEF")) Fail();
      const char c = text_[at_];
      const char* const digit = std::strchr(kHex, c >= 'A' && c <= 'F' ? c - 'A' + 'a' : c);
      code = code * 16 + static_cast<std::uint32_t>(digit - kHex);
    }
    return code;
  }

  // Behind "\u": a character, or the two halves of one, in UTF-8.
  std::string Escaped() {
    std::uint32_t code = Hex4();
    if (code >= 0xd800 && code < 0xdc00) {
      if (text_.compare(at_, 2, "\\u") != 0) Fail();
      at_ += 2;
      const std::uint32_t low = Hex4();
      if (low < 0xdc00 || low > 0xdfff) Fail();
      code = 0x10000 + ((code - 0xd800) << 10) + (low - 0xdc00);
    } else if (code >= 0xdc00 && code < 0xe000) {
      Fail();
    }
    const int more = code < 0x80 ? 0 : code < 0x800 ? 1 : code < 0x10000 ? 2 : 3;
    constexpr std::uint32_t kLead[] = {0x00, 0xc0, 0xe0, 0xf0};
    std::string bytes(1, static_cast<char>(kLead[more] | code >> (6 * more)));
    for (int i = more - 1; i >= 0; --i) {
      bytes += static_cast<char>(0x80 | (code >> (6 * i) & 0x3f));
    }
    return bytes;
  }

  std::string Text() {
    std::string value;
    ++at_;  // the quote
    while (true) {
      if (at_ >= text_.size() || static_cast<unsigned char>(text_[at_]) < 0x20) Fail();
      const char c = text_[at_++];
      if (c == '"') return value;
      if (c != '\\') {
        value += c;
        continue;
      }
      constexpr const char* kNames = "\"\\/bfnrt";
      constexpr const char* kMeant = "\"\\/\b\f\n\r\t";
      if (Is(kNames)) {
        value += kMeant[std::strchr(kNames, text_[at_++]) - kNames];
      } else if (Is("u")) {
        ++at_;
        value += Escaped();
      } else {
        Fail();
      }
    }
  }

  const std::string& where_;
  const std::string& text_;
  std::size_t at_ = 0;
};

}  // namespace

const Json* Json::Find(const std::string& name) const {
  for (const auto& [own, value] : fields) {
    if (own == name) return &value;
  }
  return nullptr;
}

Json ParseJson(const std::string& where, const std::string& text) {
  return Parser(where, text).Whole();
}

double NumberOf(const std::string& where, const Json& json, double least, double most) {
  if (json.kind != Json::Kind::kNumber) Refuse(where, " must be a number");
  return ReadNumber(where, json.text, least, most);
}

Fields::Fields(std::string where, const Json& json) : where_(std::move(where)), json_(json) {
  if (json.kind != Json::Kind::kObject) Refuse(where_, " must be an object");
}

const Json& Fields::Get(const std::string& name) {
  const Json* const value = json_.Find(name);
  if (value == nullptr) Refuse(where_, " lacks ", name);
  asked_.push_back(name);
  return *value;
}

double Fields::Number(const std::string& name, double least, double most) {
  return NumberOf(Where(name), Get(name), least, most);
}

int Fields::Whole(const std::string& name, int least, int most) {
  const Json& value = Get(name);
  if (value.kind != Json::Kind::kNumber) Refuse(Where(name), " must be a number");
  return ReadWhole(Where(name), value.text, least, most);
}

std::vector<double> Fields::Numbers(const std::string& name) {
  const Json& value = Get(name);
  if (value.kind != Json::Kind::kList) Refuse(Where(name), " must be a list of numbers");
  std::vector<double> numbers;
  for (const Json& item : value.items) numbers.push_back(NumberOf(Where(name), item));
  return numbers;
}

bool Fields::Flag(const std::string& name) {
  const Json::Kind kind = Get(name).kind;
  if (kind != Json::Kind::kTrue && kind != Json::Kind::kFalse) {
    Refuse(Where(name), " must be true or false");
  }
  return kind == Json::Kind::kTrue;
}

const std::string& Fields::Text(const std::string& name) {
  const Json& value = Get(name);
  if (value.kind != Json::Kind::kText) Refuse(Where(name), " must be a text");
  return value.text;
}

const Json& Fields::Object(const std::string& name) {
  const Json& value = Get(name);
  if (value.kind != Json::Kind::kObject) Refuse(Where(name), " must be an object");
  return value;
}

void Fields::Finish() const {
  for (const auto& [name, value] : json_.fields) {
    if (std::find(asked_.begin(), asked_.end(), name) == asked_.end()) {
      Refuse(where_, " has no field '", name, "'");
    }
  }
}

}  // namespace rimc
