# node, the libraries that it needs, and the app: no shell, no package manager.
FROM deb://bookworm?variant=minbase&packages=nodejs,npm,ca-certificates AS build
WORKDIR /app
COPY package.json index.js ./
# A certificate of one's own, where a company looks into TLS: --secret id=ca,src=FILE. Without it nothing changes.
RUN --mount=type=secret,id=ca NODE_EXTRA_CA_CERTS=/run/secrets/ca npm install --omit=dev --no-audit --no-fund

FROM deb://bookworm?packages=nodejs
WORKDIR /app
COPY --from=build /app /app
EXPOSE 3000
ENTRYPOINT ["/usr/bin/node"]
CMD ["index.js"]
