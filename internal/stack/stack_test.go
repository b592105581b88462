package stack

import (
	"runtime"
	"sync"
	"testing"
)

// TestGrow: a goroutine that has called Grow has room for what it will call.
func TestGrow(t *testing.T) {
	if plain := eachStack(func() {}); plain > room {
		t.Errorf("a stack that was not grown has %d bytes", plain)
	}
	if grown := eachStack(Grow); grown < room {
		t.Errorf("a stack that was grown has %d bytes, want more than %d", grown, room)
	}
}

// eachStack is the memory of the stacks of goroutines that have called f.
func eachStack(f func()) uint64 {
	const n = 1000
	var before, after runtime.MemStats
	runtime.GC() // it takes back the stacks that are not in use
	runtime.ReadMemStats(&before)
	var called, all sync.WaitGroup
	called.Add(n)
	end := make(chan struct{})
	for range n {
		all.Go(func() {
			f()
			called.Done()
			<-end
		})
	}
	called.Wait()
	runtime.ReadMemStats(&after)
	close(end)
	all.Wait()
	return (after.StackInuse - before.StackInuse) / n
}
