package host

import (
	"context"

	"github.com/nearkey/nearkey/catalog"
)

// HoldAssetBytes has others send n bytes of static files.
func (h *Host) HoldAssetBytes(n int64) { h.assetBytes.Add(n) }

// Prepare is what a request does that has read a record of a Worker, to its end.
func (h *Host) Prepare(ctx context.Context, record *catalog.PublishedWorker) error {
	f := h.prepare(ctx, h.worker(id{record.AccountID, record.Name}), record)
	<-f.done
	return f.err
}
