package rest

import (
	"bytes"
	"context"
	"fmt"
	"mime/multipart"
	"net/http"
	"net/textproto"
	"strings"

	"github.com/nearkey/nearkey/catalog"
)

// getScript serves GET …/scripts/{name}: a script as it is, modules as a form.
func (s *Server) getScript(ctx context.Context, c *call) error {
	v, err := s.catalog.LatestVersion(ctx, c.route.account, c.workerName())
	if err != nil {
		return workerFailure(err)
	}
	if !v.Manifest.ServiceWorker {
		return s.giveModules(ctx, c, &v.Manifest)
	}
	contents, err := s.contents(ctx, c, &v.Manifest)
	if err != nil {
		return err
	}
	c.w.Header().Set("Etag", v.Manifest.Etag)
	return c.send(http.StatusOK, []string{"application/javascript"}, contents[v.Manifest.Main])
}

// getContent serves GET …/scripts/{name}/content/v2: the modules of the latest
// version, or of the one that is named.
func (s *Server) getContent(ctx context.Context, c *call) error {
	id, err := parameter(c.r.URL.RawQuery, "version")
	if err != nil {
		return err
	}
	var v catalog.WorkerVersion
	if id == "" {
		v, err = s.catalog.LatestVersion(ctx, c.route.account, c.workerName())
	} else {
		v, err = s.catalog.Version(ctx, c.route.account, c.workerName(), id)
	}
	if err != nil {
		return workerFailure(err)
	}
	return s.giveModules(ctx, c, &v.Manifest)
}

// giveModules answers with the modules as a form, the one that is run first.
func (s *Server) giveModules(ctx context.Context, c *call, m *catalog.Manifest) error {
	contents, err := s.contents(ctx, c, m)
	if err != nil {
		return err
	}
	if err := c.hold.use(fullBytes(m)); err != nil { // the form, beside them
		return err
	}
	var body bytes.Buffer
	form := multipart.NewWriter(&body)
	add := func(module catalog.WorkerModule) error {
		name := quoteName(module.Name)
		part, err := form.CreatePart(textproto.MIMEHeader{
			"Content-Disposition": {fmt.Sprintf(`form-data; name="%s"; filename="%s"`, name, name)},
			"Content-Type":        {module.Type},
		})
		if err == nil {
			_, err = part.Write(contents[module.Name])
		}
		return err
	}
	for _, first := range []bool{true, false} {
		for _, module := range m.Modules {
			if module.Name == m.Main != first {
				continue
			}
			if err := add(module); err != nil {
				return fmt.Errorf("write the form: %w", err)
			}
		}
	}
	if err := form.Close(); err != nil {
		return fmt.Errorf("write the form: %w", err)
	}
	h := c.w.Header()
	h.Set("Cf-Entrypoint", headerText(m.Main))
	h.Set("Etag", m.Etag)
	return c.send(http.StatusOK, []string{form.FormDataContentType()}, body.Bytes())
}

// quoteName escapes a name for a header of a form, as browsers do.
func quoteName(name string) string {
	return strings.NewReplacer(`"`, "%22", "\r", "%0D", "\n", "%0A").Replace(name)
}

// headerText is text that may stand in a header.
func headerText(text string) string {
	return strings.Map(func(r rune) rune {
		if r < ' ' || r == 0x7f {
			return '_'
		}
		return r
	}, text)
}
