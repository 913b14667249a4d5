// The switches that instrument.py puts into the sources of the mutable reference. Each operator `a OP b` reads there as
// `a OP Point{id} OP b`: Point takes the left operand, then the right one, and computes OP or the mutation that is on. Precedence and
// order of evaluation stay those of the source.
#pragma once

#include <cmath>
#include <type_traits>
#include <utility>

namespace sqm {

extern int active;              // SQUAREQ_MUTATION, 0: none
extern unsigned char* reached;  // one byte per point, set when it is evaluated; null unless SQUAREQ_MUTATION_REACHED names a file

inline bool on(int id) {
  if (reached) reached[id] = 1;
  return active == id;
}

struct Point { int id; };
struct Minus { int id; };
struct Not { int id; };
template <class A>
struct Left { A value; int id; };
template <class B>
struct Right { B value; int id; };

// A token with two mutations has the ids p and p + 1.
#define SQM_ONE(OP, OTHER)                                                                                            \
  template <class A>                                                                                                  \
  Left<std::decay_t<A>> operator OP(const A& a, Point p) { return {a, p.id}; }                                        \
  template <class A, class B>                                                                                         \
  auto operator OP(const Left<A>& l, const B& b) -> decltype(l.value OP b) {                                          \
    using Result = decltype(l.value OP b);                                                                            \
    return on(l.id) ? static_cast<Result>(l.value OTHER b) : static_cast<Result>(l.value OP b);                       \
  }
#define SQM_TWO(OP, OTHER, OPPOSITE)                                                                                  \
  template <class A>                                                                                                  \
  Left<std::decay_t<A>> operator OP(const A& a, Point p) { return {a, p.id}; }                                        \
  template <class A, class B>                                                                                         \
  bool operator OP(const Left<A>& l, const B& b) {                                                                    \
    return on(l.id) ? l.value OTHER b : on(l.id + 1) ? l.value OPPOSITE b : l.value OP b;                             \
  }
SQM_ONE(+, -)
SQM_ONE(-, +)
SQM_ONE(*, +)
SQM_ONE(/, *)
SQM_ONE(%, /)
SQM_ONE(<<, >>)
SQM_ONE(>>, <<)
SQM_ONE(&, |)
SQM_ONE(|, &)
SQM_ONE(==, !=)
SQM_ONE(!=, ==)
SQM_TWO(<, <=, >=)
SQM_TWO(<=, <, >)
SQM_TWO(>, >=, <=)
SQM_TWO(>=, >, <)
#undef SQM_ONE
#undef SQM_TWO

template <class B>
Right<std::decay_t<B>> operator+=(Point p, const B& b) { return {b, p.id}; }
template <class B>
Right<std::decay_t<B>> operator*=(Point p, const B& b) { return {b, p.id}; }
template <class B>
Right<std::decay_t<B>> operator/=(Point p, const B& b) { return {b, p.id}; }

template <class T, class B>
void operator+=(T& target, const Right<B>& r) {
  if (on(r.id)) target -= r.value;
  else if (on(r.id + 1)) target = r.value;
  else target += r.value;
}
template <class T, class B>
void operator*=(T& target, const Right<B>& r) {
  if (on(r.id)) target += r.value;
  else target *= r.value;
}
template <class T, class B>
void operator/=(T& target, const Right<B>& r) {
  if (on(r.id)) target *= r.value;
  else target /= r.value;
}

template <class A>
auto operator->*(Minus m, const A& a) -> decltype(-a) { return on(m.id) ? +a : -a; }
template <class A>
bool operator->*(Not n, const A& a) { return on(n.id) ? static_cast<bool>(a) : !static_cast<bool>(a); }

template <class T, class... Other>
T pick(int id, T value, Other... other) {
  const T others[] = {static_cast<T>(other)...};
  for (const T& o : others)
    if (on(id++)) return o;
  return value;
}

/// The function that stands there, or the one that is on.
template <class F, class... Other>
auto choose(int id, F f, Other... other) {
  return [=](auto... a) {
    auto result = f(a...);
    int i = id;
    ((on(i++) ? void(result = static_cast<decltype(result)>(other(a...))) : void()), ...);
    return result;
  };
}

template <class T>
T same(T x) { return x; }
template <class T>
T first(T a, T) { return a; }
template <class T>
bool not_nan(T x) { return !std::isnan(x); }

template <class T>
T decrement(int id, T& x) {
  const T before = x;
  x -= on(id) ? 2 : 1;
  return before;
}

}  // namespace sqm
