// SPDX-License-Identifier: Apache-2.0
//
// Errors of the library: one line for the user each. Inside they are exceptions; what ONNX Runtime
// calls turns them into statuses.
#pragma once

#include <exception>
#include <initializer_list>
#include <string>
#include <utility>

namespace rimc {

// Codes of an error, with the numbers of ONNX Runtime.
enum ErrorCode : int { kFail = 1, kInvalidArgument = 2, kRuntimeException = 6 };

// One line for the user, and the error's code.
class Error : public std::exception {
 public:
  Error(int code, std::string message);
  int code() const noexcept { return code_; }
  const char* what() const noexcept override { return message_.c_str(); }

 private:
  int code_;
  std::string message_;
};

// A part of a message: a text, a number, or what has ToString().
class MessagePart {
 public:
  MessagePart(const char* text) : text_(text) {}
  MessagePart(std::string text) : text_(std::move(text)) {}
  MessagePart(char c) : text_(1, c) {}
  MessagePart(int number) : text_(std::to_string(number)) {}
  MessagePart(long number) : text_(std::to_string(number)) {}
  MessagePart(long long number) : text_(std::to_string(number)) {}
  MessagePart(unsigned number) : text_(std::to_string(number)) {}
  MessagePart(unsigned long number) : text_(std::to_string(number)) {}
  MessagePart(unsigned long long number) : text_(std::to_string(number)) {}
  MessagePart(double number);  // six digits at most
  template <class T, class = decltype(std::declval<const T&>().ToString())>
  MessagePart(const T& value) : text_(value.ToString()) {}

  const std::string& text() const { return text_; }

 private:
  std::string text_;
};

std::string Join(std::initializer_list<MessagePart> parts);

// Throws an invalid-argument Error whose message is the parts in a row.
[[noreturn]] void RefuseWith(std::initializer_list<MessagePart> parts);
template <class... Parts>
[[noreturn]] void Refuse(const Parts&... parts) {
  RefuseWith({MessagePart(parts)...});
}

}  // namespace rimc
