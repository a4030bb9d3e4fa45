// SPDX-License-Identifier: Apache-2.0
#include "base/errors.h"

#include <algorithm>
#include <cstdio>

namespace rimc {

Error::Error(int code, std::string message) : code_(code), message_(std::move(message)) {
  // Names and options of a user may have line breaks.
  for (char& c : message_) {
    if (static_cast<unsigned char>(c) < 0x20) c = ' ';
  }
}

MessagePart::MessagePart(double number) {
  char digits[32];
  std::snprintf(digits, sizeof digits, "%g", number);
  text_ = digits;
  std::replace(text_.begin(), text_.end(), ',', '.');  // of a locale
}

std::string Join(std::initializer_list<MessagePart> parts) {
  std::string joined;
  for (const MessagePart& part : parts) joined += part.text();
  return joined;
}

void RefuseWith(std::initializer_list<MessagePart> parts) {
  throw Error(kInvalidArgument, Join(parts));
}

}  // namespace rimc
