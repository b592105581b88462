package admin

import (
	"context"
	"net/http"

	"github.com/nearkey/nearkey/catalog"
	"github.com/nearkey/nearkey/kv"
)

// Acks are how writes of each namespace are acknowledged. *catalog.Acks are such.
type Acks interface {
	Get(ctx context.Context, id kv.NamespaceID) (catalog.Ack, error)
	Set(ctx context.Context, id kv.NamespaceID, ack catalog.Ack) error
}

var _ Acks = (*catalog.Acks)(nil)

// Ack is how writes of a namespace are acknowledged: first, both or default.
type Ack struct {
	Ack string `json:"ack"`
}

func (h *Handler) getAck(w http.ResponseWriter, r *http.Request) error {
	id, err := h.acked(r)
	if err != nil {
		return err
	}
	ack, err := h.config.Acks.Get(r.Context(), id)
	if err != nil {
		return err
	}
	h.Answer(w, Ack{ack.String()})
	return nil
}

func (h *Handler) putAck(w http.ResponseWriter, r *http.Request) error {
	id, err := h.acked(r)
	if err != nil {
		return err
	}
	var asked Ack
	if err := read(w, r, &asked); err != nil {
		return err
	}
	ack, err := catalog.ParseAck(asked.Ack)
	if err != nil {
		return err
	}
	if err := h.config.Acks.Set(r.Context(), id, ack); err != nil {
		return err
	}
	h.config.Logger.InfoContext(r.Context(), "admin: writes of a namespace are acknowledged otherwise", "namespace", id, "ack", ack.String())
	h.Answer(w, Ack{ack.String()})
	return nil
}

func (h *Handler) acked(r *http.Request) (kv.NamespaceID, error) {
	if h.config.Acks == nil {
		return kv.NamespaceID{}, errNoGateway
	}
	return parseNamespace(r.PathValue("namespace"))
}
