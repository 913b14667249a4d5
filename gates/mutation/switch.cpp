// Which mutation is on, read from the environment before anything else in this library is initialized.
#include "gates/mutation/switch.hpp"

#include <fcntl.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

#include <cstdlib>

namespace sqm {
namespace {

int chosen() {
  const char* text = std::getenv("SQUAREQ_MUTATION");
  return text ? std::atoi(text) : 0;
}

unsigned char* mapped() {
  const char* path = std::getenv("SQUAREQ_MUTATION_REACHED");
  if (!path) return nullptr;
  const int file = ::open(path, O_RDWR);
  struct stat status{};
  if (file < 0 || ::fstat(file, &status) != 0) std::abort();  // the runner made the file
  void* bytes = ::mmap(nullptr, static_cast<std::size_t>(status.st_size), PROT_READ | PROT_WRITE, MAP_SHARED, file, 0);
  ::close(file);
  if (bytes == MAP_FAILED) std::abort();
  return static_cast<unsigned char*>(bytes);
}

}  // namespace

int active = 0;
unsigned char* reached = nullptr;

namespace {

// Runs before the constructors of this library's other objects, some of which read mutated constants.
__attribute__((constructor(101))) void read_environment() {
  active = chosen();
  reached = mapped();
}

}  // namespace

}  // namespace sqm
