package rest

import (
	"context"
	"encoding/json"
	"errors"
	"net/http"
	"slices"
	"strconv"

	"github.com/nearkey/nearkey/catalog"
	"github.com/nearkey/nearkey/kv"
)

// space is a namespace as the API shows it.
type space struct {
	ID                  string `json:"id"`
	Title               string `json:"title"`
	SupportsURLEncoding bool   `json:"supports_url_encoding"`
	Jurisdiction        string `json:"jurisdiction,omitempty"`
}

func newSpace(n catalog.Namespace) space {
	return space{ID: n.ID.String(), Title: n.Title, SupportsURLEncoding: true, Jurisdiction: n.Jurisdiction}
}

// pageInfo is the result_info of a listing by pages.
type pageInfo struct {
	Page       int `json:"page"`
	PerPage    int `json:"per_page"`
	Count      int `json:"count"`
	TotalCount int `json:"total_count"`
	TotalPages int `json:"total_pages"`
}

func newPageInfo(page, perPage, count, total int) pageInfo {
	return pageInfo{page, perPage, count, total, (total + perPage - 1) / perPage}
}

// The pages of listings.
const (
	defaultPerPage = 20
	maxPerPage     = 1000
	maxPage        = 1_000_000_000
)

// pageOf reads which page is asked for.
func pageOf(query string) (page, perPage int, err error) {
	if page, err = numberParameter(query, "page", 1, maxPage); err != nil {
		return 0, 0, err
	}
	perPage, err = numberParameter(query, "per_page", defaultPerPage, maxPerPage)
	return page, perPage, err
}

func numberParameter(query, name string, otherwise, most int) (int, error) {
	text, err := parameter(query, name)
	if err != nil || text == "" {
		return otherwise, err
	}
	n, err := strconv.Atoi(text)
	if err != nil || n < 1 || n > most {
		return 0, invalid("Invalid %s of %s. Please specify an integer between 1 and %d.", name, shown(text), most)
	}
	return n, nil
}

// pageItems is the page of a list that is in memory.
func pageItems[T any](all []T, page, perPage int) []T {
	from := min((page-1)*perPage, len(all))
	return all[from:min(from+perPage, len(all))]
}

// listNamespaces serves GET …/namespaces. A page past the end is empty: SDKs ask
// until they get one. A token for some namespaces sees those.
func (s *Server) listNamespaces(ctx context.Context, c *call) error {
	raw := c.r.URL.RawQuery
	page, perPage, err := pageOf(raw)
	if err != nil {
		return err
	}
	order, err := parameter(raw, "order")
	if err != nil {
		return err
	}
	direction, err := parameter(raw, "direction")
	if err != nil {
		return err
	}
	if !slices.Contains([]string{"", "id", "title"}, order) || !slices.Contains([]string{"", "asc", "desc"}, direction) {
		return invalid("Invalid order. Please specify 'id' or 'title' as order and 'asc' or 'desc' as direction.")
	}
	list, total, err := s.catalog.Namespaces(ctx, c.route.account, catalog.NamespaceQuery{
		Offset:     (page - 1) * perPage,
		Limit:      perPage,
		OrderByID:  order == "id",
		Descending: direction == "desc",
		Only:       c.visibleNamespaces(),
	})
	if err != nil {
		return err
	}
	spaces := make([]space, len(list))
	for i, n := range list {
		spaces[i] = newSpace(n)
	}
	return c.give(spaces, newPageInfo(page, perPage, len(spaces), total))
}

// visibleNamespaces are the namespaces that the grant has a right in, nil for all.
func (c *call) visibleNamespaces() []kv.NamespaceID {
	if c.grant.Account(c.route.account, catalog.Read) {
		return nil
	}
	only := []kv.NamespaceID{}
	for _, scope := range c.grant.Scopes {
		if scope.AccountID == c.route.account && !slices.Contains(only, scope.Namespace) {
			only = append(only, scope.Namespace)
		}
	}
	return only
}

// getNamespace serves GET …/namespaces/{ns}.
func (s *Server) getNamespace(ctx context.Context, c *call) error {
	n, err := s.catalog.Namespace(ctx, c.route.account, c.space)
	if err != nil {
		return catalogFailure(err)
	}
	return c.give(newSpace(n), nil)
}

// controlBodyBytes is the greatest body of a request to the control plane.
const controlBodyBytes = 256 << 10

func controlBodyTooLong(n int64) error {
	return &failure{status: http.StatusRequestEntityTooLarge, code: codeInvalid, text: "The request body of " + strconv.FormatInt(n, 10) + " bytes is too large"}
}

// readJSON reads a body of the control plane into v. Fields that v does not have
// are ignored.
func (c *call) readJSON(v any) error {
	if err := c.body.limit(controlBodyBytes, controlBodyTooLong); err != nil {
		return err
	}
	text, err := c.readAll(&c.body, c.body.length(), controlBodyBytes)
	if err != nil {
		return bodyFailure(err)
	}
	var wrongType *json.UnmarshalTypeError
	switch err := json.Unmarshal(text, v); {
	case errors.As(err, &wrongType) && wrongType.Field == "":
		return invalid("The request body must be a JSON object")
	case wrongType != nil:
		return invalid("The field '%s' of the request body has the wrong type", shown(wrongType.Field))
	case err != nil:
		return errSyntax
	}
	return nil
}

// createNamespace serves POST …/namespaces.
func (s *Server) createNamespace(ctx context.Context, c *call) error {
	var body struct {
		Title        string `json:"title"`
		Jurisdiction string `json:"jurisdiction"`
	}
	if err := c.readJSON(&body); err != nil {
		return err
	}
	if !slices.Contains([]string{"", "eu", "us", "fedramp"}, body.Jurisdiction) {
		return invalid("Invalid jurisdiction. Please specify 'eu', 'us' or 'fedramp', or none.")
	}
	n, err := s.catalog.CreateNamespace(ctx, c.route.account, body.Title, body.Jurisdiction, s.namespaces)
	if err != nil {
		return catalogFailure(err)
	}
	return c.give(newSpace(n), nil)
}

// renameNamespace serves PUT …/namespaces/{ns}.
func (s *Server) renameNamespace(ctx context.Context, c *call) error {
	var body struct {
		Title string `json:"title"`
	}
	if err := c.readJSON(&body); err != nil {
		return err
	}
	n, err := s.catalog.RenameNamespace(ctx, c.route.account, c.space, body.Title)
	if err != nil {
		return catalogFailure(err)
	}
	return c.give(newSpace(n), nil)
}

// deleteNamespace serves DELETE …/namespaces/{ns}.
func (s *Server) deleteNamespace(ctx context.Context, c *call) error {
	if err := s.catalog.DeleteNamespace(ctx, c.route.account, c.space); err != nil {
		return catalogFailure(err)
	}
	s.requests.Forget(c.space)
	s.dropped()
	return c.done()
}
