// distribution.h: a row of numbers -> integer intervals.
#pragma once
