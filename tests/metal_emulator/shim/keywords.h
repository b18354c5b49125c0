// Last of the headers: nothing after it may need the words it takes away.
#pragma once
#define device
#define constant
#define thread
#define threadgroup
