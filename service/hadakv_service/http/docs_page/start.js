"use strict";

// Calls that the page cannot send get no "Try it out". Their description says why, and has a program instead.
const withoutBrokenExecute = () => ({
  statePlugins: {
    spec: {
      wrapSelectors: {
        allowTryItOutFor: (original, system) => (state, path, method) =>
          system.specSelectors.specJson().getIn(["paths", path, method, "x-executable"]) !== false,
      },
    },
  },
});

SwaggerUIBundle({
  url: "openapi.json",
  dom_id: "#swagger-ui",
  deepLinking: true,
  plugins: [withoutBrokenExecute],
  // The default would send the document to a validator on the internet.
  validatorUrl: null,
});
