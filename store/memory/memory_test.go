package memory_test

import (
	"testing"

	"github.com/nearkey/nearkey/kv"
	"github.com/nearkey/nearkey/kv/kvtest"
	"github.com/nearkey/nearkey/store/memory"
)

func TestLaws(t *testing.T) {
	kvtest.Run(t, func(*testing.T) kv.Store { return memory.New() })
}
