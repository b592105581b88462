package host

// HoldAssetBytes has others send n bytes of static files.
func (h *Host) HoldAssetBytes(n int64) { h.assetBytes.Add(n) }
