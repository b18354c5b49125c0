// This header must be the last one, because it redefines keywords.
#pragma once
#define device
#define constant
#define thread
#define threadgroup
