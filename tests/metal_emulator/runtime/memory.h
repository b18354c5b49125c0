// Memory with guard pages: buffers and threadgroup variables are placed between inaccessible pages.
#pragma once
#include <cstddef>
#include <cstdint>
#include <string>
#include <vector>

namespace lanes {

class Region {
 public:
  // Allocates `bytes` bytes filled with `poison`, next to the guard pages after them or, if at_start, before them.
  Region(std::string name, size_t bytes, size_t alignment, bool at_start, unsigned char poison);
  Region(Region&& other) noexcept;
  Region(const Region&) = delete;
  Region& operator=(const Region&) = delete;
  ~Region();

  char* bytes() const { return bytes_; }
  size_t size() const { return size_; }
  const std::string& name() const { return name_; }

  void make_read_only();
  void fill(unsigned char poison);
  // Whether the address is in this region or in its guard pages.
  bool covers(const void* address) const;
  // "12 bytes past the end of output 'y' (256 bytes)", for an address it covers.
  void describe(const void* address, char* text, size_t room) const;
  // Whether the bytes between the data and the page ends are still poison. Describes the first that is not.
  bool slack_intact(char* text, size_t room) const;

 private:
  std::string name_;
  char *map_, *pages_, *bytes_;
  size_t map_size_, pages_size_, size_;
  unsigned char poison_;
};

// Threadgroup variables of the running kernel, found by a unique key of each variable.
class ThreadgroupMemory {
 public:
  void begin(bool guard_at_start, unsigned char poison);
  void poison_all();
  void* variable(const void* key, const char* name, size_t bytes, size_t alignment);
  const Region* find(const void* address) const;
  const Region* overrun(char* text, size_t room) const;
  void end() { variables_.clear(); }

 private:
  struct Variable {
    const void* key;
    Region region;
  };
  std::vector<Variable> variables_;
  size_t used_ = 0;
  bool guard_at_start_ = false;
  unsigned char poison_ = 0;
};

}  // namespace lanes
