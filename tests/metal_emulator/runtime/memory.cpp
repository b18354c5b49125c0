#include "memory.h"

#include <sys/mman.h>
#include <unistd.h>

#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <utility>

#include "accesses.h"
#include "scheduler.h"

namespace lanes {

namespace {
// Guards take address space only. They are large so that an index far out of bounds still identifies its buffer.
constexpr size_t kGuardBytes = size_t{16} << 20;
// Alignment of buffers in Metal, on which wide loads may rely.
constexpr size_t kBufferAlignment = 16;
constexpr size_t kThreadgroupBytes = 32 * 1024;

size_t round_up(size_t value, size_t unit) { return (value + unit - 1) / unit * unit; }
}  // namespace

Region::Region(std::string name, size_t bytes, size_t alignment, bool at_start, unsigned char poison)
    : name_(std::move(name)), size_(bytes), poison_(poison) {
  size_t page = static_cast<size_t>(getpagesize());
  if (alignment < kBufferAlignment) alignment = kBufferAlignment;
  pages_size_ = round_up(round_up(bytes ? bytes : 1, alignment), page);
  map_size_ = pages_size_ + 2 * kGuardBytes;
  map_ = static_cast<char*>(mmap(nullptr, map_size_, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0));
  pages_ = map_ + kGuardBytes;
  if (map_ == MAP_FAILED || mprotect(pages_, pages_size_, PROT_READ | PROT_WRITE) != 0) abort();
  bytes_ = at_start ? pages_ : pages_ + pages_size_ - round_up(bytes, alignment);
  memset(pages_, poison, pages_size_);
}

Region::Region(Region&& other) noexcept
    : name_(std::move(other.name_)),
      map_(std::exchange(other.map_, nullptr)),
      pages_(other.pages_),
      bytes_(other.bytes_),
      map_size_(other.map_size_),
      pages_size_(other.pages_size_),
      size_(other.size_),
      poison_(other.poison_) {}

Region::~Region() {
  if (map_) munmap(map_, map_size_);
}

void Region::make_read_only() { mprotect(pages_, pages_size_, PROT_READ); }

void Region::fill(unsigned char poison) { memset(bytes_, poison, size_); }

bool Region::covers(const void* address) const {
  const char* byte = static_cast<const char*>(address);
  return byte >= map_ && byte < map_ + map_size_;
}

void Region::describe(const void* address, char* text, size_t room) const {
  const char* byte = static_cast<const char*>(address);
  if (byte < bytes_)
    snprintf(text, room, "%td bytes before the start of %s (%zu bytes)", bytes_ - byte, name_.c_str(), size_);
  else if (byte < bytes_ + size_)
    snprintf(text, room, "byte %td of %s, which is read-only", byte - bytes_, name_.c_str());
  else
    snprintf(text, room, "byte %td of %s, which has %zu", byte - bytes_, name_.c_str(), size_);
}

bool Region::slack_intact(char* text, size_t room) const {
  for (const char* byte = pages_; byte < pages_ + pages_size_; byte++) {
    if (byte == bytes_) byte += size_;
    if (byte == pages_ + pages_size_) break;
    if (static_cast<unsigned char>(*byte) == poison_) continue;
    describe(byte, text, room);
    return false;
  }
  return true;
}

void ThreadgroupMemory::begin(bool guard_at_start, unsigned char poison) {
  variables_.clear();
  used_ = 0;
  guard_at_start_ = guard_at_start;
  poison_ = poison;
}

void ThreadgroupMemory::poison_all() {
  for (Variable& variable : variables_) variable.region.fill(poison_);
}

void* ThreadgroupMemory::variable(const void* key, const char* name, size_t bytes, size_t alignment) {
  for (Variable& variable : variables_)
    if (variable.key == key) return variable.region.bytes();
  used_ = round_up(used_, alignment) + bytes;
  if (used_ > kThreadgroupBytes)
    fail("threadgroup memory: %zu bytes with '%s', and Metal has %zu", used_, name, kThreadgroupBytes);
  std::string label = std::string("threadgroup variable '") + name + "'";
  variables_.push_back({key, Region(std::move(label), bytes, alignment, guard_at_start_, poison_)});
  const Region& region = variables_.back().region;
  accesses().watch(region.name(), region.bytes(), bytes, Space::threadgroup, false);
  return region.bytes();
}

const Region* ThreadgroupMemory::find(const void* address) const {
  for (const Variable& variable : variables_)
    if (variable.region.covers(address)) return &variable.region;
  return nullptr;
}

const Region* ThreadgroupMemory::overrun(char* text, size_t room) const {
  for (const Variable& variable : variables_)
    if (!variable.region.slack_intact(text, room)) return &variable.region;
  return nullptr;
}

}  // namespace lanes
