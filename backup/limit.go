package backup

import (
	"fmt"
	"sync/atomic"

	"github.com/nearkey/nearkey/kv"
)

// limit is the bytes that one reading of several records may still take.
type limit struct{ left atomic.Int64 }

// reserve is what kv.WithReserver wants.
func (l *limit) reserve(n int64) error {
	if l.left.Add(-n) < 0 {
		return fmt.Errorf("read several large values at once: %w", kv.ErrOverloaded)
	}
	return nil
}

// all lets a single record through, whose size kv.MaxValueBytes bounds.
func all(int64) error { return nil }
