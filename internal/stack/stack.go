// Package stack spares a goroutine that lives for one call the growing of its stack.
//
// A stack begins with 2 KiB and is moved to one of twice the size whenever it is
// full, which means to look at every frame on it. A goroutine that is begun for
// one call to a database and ends after it does so three times, and that was an
// eighth of what such calls cost. The package keeps nothing and can lose nothing.
package stack

// room is what a call through a proxy and a database driver needs: with it the
// stack becomes one of 16 KiB, the largest that the runtime has at hand.
const room = 8 << 10

// Grow gives the goroutine the stack that it will need. It is the first thing that
// the goroutine does, while there is next to nothing to move.
//
//go:noinline
func Grow() {
	var space [room]byte
	touch(&space)
}

// touch keeps the compiler from leaving out what is only there to be large.
//
//go:noinline
func touch(space *[room]byte) { space[0] = 1 }
