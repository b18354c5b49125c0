// For MLX's header of this name, whose functions wrap builtins of Apple's compiler: metal.h has them.
#pragma once
