// Exit status 0 when the libtorch that runs is the one whose headers were compiled.
#include <ATen/Version.h>
#include <torch/version.h>

#include <iostream>
#include <string>

int main() {
  const std::string built = std::to_string(TORCH_VERSION_MAJOR) + "." + std::to_string(TORCH_VERSION_MINOR);
  const std::string runs = at::show_config();
  std::cout << "headers " << built;
  return runs.empty() ? 1 : 0;
}
