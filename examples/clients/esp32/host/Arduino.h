// What the sketch uses of the Arduino core, on a PC: the sketch itself is compiled and asks a real node in the tests.
#pragma once
#include <chrono>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <random>
#include <string>
#include <thread>

/// The core's own string, with nothing more than it has: what std::string could do besides must not compile here.
class String {
 public:
  String(const char *text = "") : bytes(text) {}
  String &operator+=(char c) { bytes += c; return *this; }
  unsigned int length() const { return (unsigned int)bytes.size(); }
  const char *c_str() const { return bytes.c_str(); }

 private:
  std::string bytes;
};
inline void delay(unsigned long ms) { std::this_thread::sleep_for(std::chrono::milliseconds(ms)); }
inline unsigned long millis() {
  using namespace std::chrono;
  return (unsigned long)duration_cast<milliseconds>(steady_clock::now().time_since_epoch()).count();
}
inline uint32_t esp_random() { static std::random_device device; return device(); }
struct { uint64_t getEfuseMac() { return esp_random(); } } inline ESP;
/// The line to ask comes from the test; what is printed goes to standard output.
struct HostSerial {
  std::string input;
  size_t at = 0;
  void begin(int) {}
  int available() { return (int)(input.size() - at); }
  char read() { return input[at++]; }
  void write(const uint8_t *bytes, size_t n) { fwrite(bytes, 1, n, stdout); fflush(stdout); }
  void println(const char *text = "") { puts(text); fflush(stdout); }
} inline Serial;
